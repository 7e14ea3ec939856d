//! The records as comma-separated values: a row a record, a column a field, whatever kinds of records there are. Lists, such
//! as a training's epochs, stay in the JSON.

use serde_json::Value;

use super::training_table::{FROM_START, seconds_from_start};
use crate::{
    Error, Kind, Result,
    measure::record::{Line, Record},
};

/// Columns that come first, where there are such; the others follow by name.
const FIRST: [&str; 23] = [
    "bench",
    "swiglu",
    "device",
    "gpu",
    "precision",
    "pass",
    "gates",
    "B",
    "D",
    "H",
    "cache",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "samples",
    "tflops",
    "gbytes_per_s",
    "floor_ms",
    "rel_err",
    "bound",
    "ok",
    "launches",
    "saved_bytes",
];

/// Of a training: seconds from the start of the process to 98 % test accuracy, which its lists hold.
const FROM_START_COLUMN: &str = "start_to_98_percent_s";

/// The records, with a header.
///
/// # Errors
/// When a record cannot be written as JSON, which its fields are taken from.
pub fn text(lines: &[Line]) -> Result<String> {
    let mut rows: Vec<Vec<(String, String)>> = Vec::new();
    for line in lines {
        let value = serde_json::to_value(line)
            .map_err(|e| Error::new(Kind::Io, "cannot write the records as CSV").because(e))?;
        let mut row = Vec::new();
        flatten("", &value, &mut row);
        if let Record::Train(training) = &line.record
            && let Some(seconds) = seconds_from_start(training, FROM_START)
        {
            row.push((FROM_START_COLUMN.into(), format!("{seconds:.3}")));
        }
        rows.push(row);
    }
    let mut columns: Vec<&str> = rows.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    columns.sort_by_key(|name| (rank(name), *name));
    columns.dedup();
    let mut out = columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",") + "\r\n";
    for row in &rows {
        let cell =
            |column: &&str| row.iter().find(|(name, _)| name == column).map_or(String::new(), |(_, v)| quoted(v));
        out += &(columns.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n");
    }
    Ok(out)
}

/// The fields of `value`, those inside others with the names of both: `origin.model`.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                flatten(&name, value, into);
            }
        }
        Value::Array(_) => {}
        Value::Null => into.push((name.into(), String::new())),
        Value::String(text) => into.push((name.into(), text.clone())),
        other => into.push((name.into(), other.to_string())),
    }
}

/// A cell as RFC 4180 has it: in quotes where it holds a comma, a quote or a line's end.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_need_quotes_have_them() {
        assert_eq!(quoted("plain 1.5"), "plain 1.5");
        assert_eq!(quoted("a, \"b\"\n"), "\"a, \"\"b\"\"\n\"");
    }

    #[test]
    fn fields_inside_fields_have_both_names_and_lists_are_left_out() {
        let value: Value = serde_json::from_str(r#"{"a":1.5,"b":{"c":"x","d":null},"e":[1,2]}"#).unwrap();
        let mut row = Vec::new();
        flatten("", &value, &mut row);
        let row: Vec<(&str, &str)> = row.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(row, [("a", "1.5"), ("b.c", "x"), ("b.d", "")]);
    }
}
