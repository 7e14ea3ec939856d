//! What the tour is written with: lines of at most 80 columns of plain characters, with bold headings where that is wanted.

/// Columns of a plain terminal.
pub const WIDTH: usize = 80;

/// A chapter's text.
#[derive(Clone, Debug, Default)]
pub struct Page {
    text: String,
    bold: bool,
}

impl Page {
    /// An empty one; headings are bold when `bold`.
    pub fn new(bold: bool) -> Page {
        Page { text: String::new(), bold }
    }

    /// A line as it is.
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// An empty line.
    pub fn blank(&mut self) {
        self.line("");
    }

    /// A line that stands out.
    pub fn heading(&mut self, line: &str) {
        if self.bold {
            self.line(&format!("\x1b[1m{}\x1b[0m", line.trim_end()));
        } else {
            self.line(line);
        }
    }

    /// Sentences, broken between words.
    pub fn text(&mut self, text: &str) {
        self.indented("", text);
    }

    /// A point of a list.
    pub fn point(&mut self, text: &str) {
        self.indented("- ", text);
    }

    fn indented(&mut self, first: &str, text: &str) {
        let (mut line, indent) = (first.to_owned(), " ".repeat(first.len()));
        let mut words = 0;
        for word in text.split_whitespace() {
            if words > 0 && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.line(&line);
                line.clone_from(&indent);
                words = 0;
            }
            if words > 0 {
                line.push(' ');
            }
            line.push_str(word);
            words += 1;
        }
        self.line(&line);
    }

    /// Cells in aligned columns.
    pub fn columns<const N: usize>(&mut self, rows: &[[&str; N]]) {
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            self.line(&format!("  {}", cells.collect::<Vec<_>>().join("  ")));
        }
    }

    /// What was written.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A bar of `mark`, `width` for `most`, and spaces up to that.
pub fn bar(mark: char, value: f64, most: f64, width: usize) -> String {
    let length = if most > 0.0 { ((value / most * width as f64).round() as usize).min(width) } else { 0 };
    // What is there at all is to be seen.
    let length = if value > 0.0 { length.max(1) } else { length };
    mark.to_string().repeat(length) + &" ".repeat(width - length)
}

/// Bytes with a unit.
pub fn bytes(value: usize) -> String {
    match value {
        0 => "nothing".into(),
        1..=1023 => format!("{value} bytes"),
        1024..=1_048_575 => format!("{:.0} KiB", value as f64 / 1024.0),
        _ => format!("{:.1} MiB", value as f64 / 1_048_576.0),
    }
}

/// A count with a unit from a thousand on.
pub fn count(value: usize) -> String {
    let scaled = |by: f64, unit: &str| format!("{:.1} {unit}", value as f64 / by);
    match value {
        ..10_000 => value.to_string(),
        10_000..1_000_000 => format!("{} thousand", (value as f64 / 1e3).round()),
        1_000_000..1_000_000_000 => scaled(1e6, "million"),
        _ => scaled(1e9, "billion"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_to_eighty_columns_and_bars_to_their_width() {
        let mut page = Page::new(false);
        page.text(&"word ".repeat(40));
        page.point(&"another ".repeat(30));
        page.heading("plain");
        let text = page.into_text();
        assert!(text.lines().all(|line| line.len() <= WIDTH && !line.contains('\x1b')), "{text}");
        assert!(text.contains("\n- another") && text.contains("\n  another"), "{text}");
        assert_eq!(bar('#', 1.0, 2.0, 10), "#####     ");
        assert_eq!(bar('#', 0.001, 2.0, 4), "#   ");
        assert_eq!((bar('#', 0.0, 2.0, 4).as_str(), bar('#', 0.0, 0.0, 2).as_str()), ("    ", "  "));
        assert_eq!([0, 12, 2048, 3 << 20].map(bytes), ["nothing", "12 bytes", "2 KiB", "3.0 MiB"]);
        assert_eq!([7, 131_072, 50_331_648].map(count), ["7", "131 thousand", "50.3 million"]);
    }
}
