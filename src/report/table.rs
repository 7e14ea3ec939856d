//! A table of text: for the terminal, for Markdown and for HTML.

/// Cells with a heading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns, with units.
    pub header: Vec<String>,
    /// Rows as long as the header.
    pub rows: Vec<Vec<String>>,
    /// Columns of words, aligned to the left: so many, from the first on.
    pub words: usize,
    /// What a reader has to know below it.
    pub notes: Vec<String>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>, words: usize, header: &[&str]) -> Table {
        Table { title: title.into(), words, header: header.iter().map(|&h| h.into()).collect(), ..Table::default() }
    }

    /// Aligned columns for a terminal.
    pub fn text(&self) -> String {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column < self.words { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let body: String = all().map(line).collect();
        let notes: String = self.notes.iter().map(|note| format!("{note}\n")).collect();
        format!("{}\n{body}{notes}", self.title)
    }

    /// A Markdown table, without its title.
    pub fn markdown(&self) -> String {
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let rule: Vec<&str> =
            (0..self.header.len()).map(|column| if column < self.words { "---" } else { "---:" }).collect();
        let body: String = self.rows.iter().map(line).collect();
        let notes: String = self.notes.iter().map(|note| format!("\n{note}\n")).collect();
        format!("{}|{}|\n{body}{notes}", line(&self.header), rule.join("|"))
    }

    /// An HTML table in a box that scrolls sideways when the page is narrow, with its title as caption.
    pub fn html(&self) -> String {
        let class = |column: usize| if column < self.words { "" } else { " class=\"n\"" };
        let row = |tag: &str, row: &Vec<String>| {
            let cells = row.iter().enumerate().map(|(c, cell)| format!("<{tag}{}>{}</{tag}>", class(c), escape(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let body: String = self.rows.iter().map(|cells| row("td", cells)).collect();
        let notes: String = self.notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect();
        format!(
            "<div class=\"scroll\" tabindex=\"0\"><table><caption>{}</caption>\n<thead>{}</thead>\n<tbody>\n{body}</tbody></table></div>\n{notes}",
            escape(&self.title),
            row("th", &self.header)
        )
    }
}

/// Text as HTML and XML show it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A time with three digits that count.
pub fn ms(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else if value >= 0.1 {
        3
    } else if value >= 0.01 {
        4
    } else {
        5
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_the_same_in_three_forms() {
        let mut table = Table::new("Times", 1, &["name", "ms"]);
        table.rows = vec![vec!["a < b".into(), "1.00".into()], vec!["c".into(), "10.0".into()]];
        table.notes = vec!["n = 3".into()];
        assert_eq!(table.text(), "Times\nname     ms\na < b  1.00\nc      10.0\nn = 3\n");
        assert_eq!(table.markdown(), "| name | ms |\n|---|---:|\n| a < b | 1.00 |\n| c | 10.0 |\n\nn = 3\n");
        assert!(table.html().contains("<tr><td>a &lt; b</td><td class=\"n\">1.00</td></tr>"));
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!([0.00523, 0.0123, 1.234, 12.34, 2345.6].map(ms), ["0.00523", "0.0123", "1.23", "12.3", "2346"]);
    }
}
