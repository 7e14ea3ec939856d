//! `report`: a folder with a page, Markdown and JSON, from records alone.

use std::path::PathBuf;

use super::{bench::FOLDER, out};
use crate::{Result, cli::ReportArgs, measure::record, report::folder};

/// Reads the records, writes the report.
///
/// # Errors
/// When there are no records, they are of another version, or the folder cannot be written.
pub fn run(args: ReportArgs) -> Result<()> {
    let from = if args.records.is_empty() { vec![PathBuf::from(FOLDER)] } else { args.records };
    let records = record::read(&from)?;
    folder::write(&records, &args.out)?;
    for why in records.left_out() {
        out::print_line(&format!("note: {why}"))?;
    }
    out::print_line(&format!("{} records\nreport  {}", records.lines.len(), args.out.join("index.html").display()))
}
