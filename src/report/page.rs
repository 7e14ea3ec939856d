//! The report as a page of HTML, one file that loads nothing, and as Markdown.

use super::{
    charts::{Chart, Section},
    palette,
    table::{Table, escape},
};

/// What is in a report.
#[derive(Debug)]
pub struct Parts {
    /// Its title.
    pub title: String,
    /// What was measured, on what.
    pub subtitle: String,
    /// What must be seen first: cases that failed.
    pub warnings: Vec<String>,
    /// Machines, commits, times; what was left out.
    pub origins: Vec<String>,
    /// Which one to use.
    pub sentences: Vec<String>,
    /// Charts, each with its SVG.
    pub charts: Vec<(Chart, String)>,
    /// Tables.
    pub tables: Vec<Table>,
}

/// Colours of the reader's scheme; charts side by side where there is room; tables that scroll sideways where there is
/// none. Printing is on white, with everything opened.
const STYLE: &str = include_str!("assets/page.css");

impl Parts {
    fn sections(&self) -> impl Iterator<Item = (Section, Vec<&(Chart, String)>)> {
        Section::ALL.into_iter().filter_map(|section| {
            let charts: Vec<_> = self.charts.iter().filter(|(chart, _)| chart.section == section).collect();
            (!charts.is_empty()).then_some((section, charts))
        })
    }

    /// Anchors of what is on the page, in its order, with their names.
    fn contents(&self) -> Vec<(&'static str, &'static str)> {
        let mut contents = vec![("which", "Which one should I use")];
        contents.extend(self.sections().map(|(section, _)| (section.id(), section.title())));
        contents.extend([("tables", "Tables"), ("measured", "Measured on")]);
        contents
    }

    /// As Markdown; charts are the PNG files beside it.
    pub fn markdown(&self) -> String {
        let list = |items: &[String]| items.iter().map(|item| format!("- {item}\n")).collect::<String>();
        let chart = |(chart, _): &(Chart, String)| {
            let Chart { name, alt, caption, .. } = chart;
            // An element, since Markdown's own picture has no width: the file has twice the pixels that it is shown with.
            format!("\n<img src=\"{name}.png\" width=\"440\" alt=\"{}\">\n\n{caption}\n", escape(alt))
        };
        let section = |(section, charts): (Section, Vec<&(Chart, String)>)| {
            format!("\n## {}\n{}", section.title(), charts.into_iter().map(chart).collect::<String>())
        };
        let table = |table: &Table| format!("\n### {}\n\n{}", table.title, table.markdown());
        format!(
            "# {}\n\n{}\n{}\n## Which one should I use\n\n{}{}\n## Tables\n{}\n## Measured on\n\n{}",
            self.title,
            self.subtitle,
            self.warnings.iter().map(|warning| format!("\n**{warning}**\n")).collect::<String>(),
            list(&self.sentences),
            self.sections().map(section).collect::<String>(),
            self.tables.iter().map(table).collect::<String>(),
            list(&self.origins)
        )
    }

    /// As HTML.
    pub fn html(&self) -> String {
        let list =
            |items: &[String]| items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect::<String>();
        let link = |(id, name): (&str, &str)| format!("<a href=\"#{id}\">{name}</a>\n");
        let section = |(section, charts): (Section, Vec<&(Chart, String)>)| {
            let charts: String = charts.into_iter().map(figure).collect();
            let (id, title) = (section.id(), section.title());
            format!("<section><h2 id=\"{id}\">{title}</h2>\n<div class=\"charts\">\n{charts}</div></section>\n")
        };
        // What is asked first stands open: all but the long tables of single cases.
        let table = |table: &Table| {
            let open = if table.rows.len() <= 12 { " open" } else { "" };
            let rows = table.rows.len();
            format!(
                "<details{open}><summary>{} <small>{rows} rows</small></summary>{}</details>\n",
                escape(&table.title),
                table.html()
            )
        };
        let warnings: String =
            self.warnings.iter().map(|warning| format!("<p class=\"warning\">{}</p>\n", escape(warning))).collect();
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
             <title>{title}</title><style>\n{STYLE}@media screen and (prefers-color-scheme:dark){{{}}}\n</style></head>\n\
             <body><header><h1>{title}</h1>\n<p class=\"note\">{}</p>\n<nav aria-label=\"contents\">\n{}</nav></header>\n\
             <main>{warnings}<section><h2 id=\"which\">Which one should I use</h2>\n<ul>{}</ul></section>\n{}\
             <section><h2 id=\"tables\">Tables</h2>\n{}</section>\n<section><h2 id=\"measured\">Measured on</h2>\n<ul>{}</ul>\
             <p class=\"note\">The numbers behind everything here: results.csv and results.json beside this page.</p></section>\n\
             </main></body></html>\n",
            palette::dark_css("figure svg "),
            escape(&self.subtitle),
            self.contents().into_iter().map(link).collect::<String>(),
            list(&self.sentences),
            self.sections().map(section).collect::<String>(),
            self.tables.iter().map(table).collect::<String>(),
            list(&self.origins)
        )
    }
}

fn figure((chart, svg): &(Chart, String)) -> String {
    let (alt, caption) = (escape(&chart.alt), escape(&chart.caption));
    // Inside a page the name space goes without saying, and a page without any address is easily seen to load nothing. Its
    // own style goes too: the page has the same rules once for all.
    let svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    let svg = match (svg.find("<style>"), svg.find("</style>")) {
        (Some(from), Some(to)) => format!("{}{}", &svg[..from], &svg[to + "</style>".len()..]),
        _ => svg,
    };
    // A view box lets the picture grow and shrink with its column.
    let size =
        |name: &str| svg.split(&format!(" {name}=\"")).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("0");
    let svg = match svg.contains("viewBox") {
        true => svg,
        false => svg.replacen("<svg", &format!("<svg viewBox=\"0 0 {} {}\"", size("width"), size("height")), 1),
    };
    format!(
        "<figure id=\"chart-{}\"><div role=\"img\" aria-label=\"{alt}\">{}</div><figcaption>{caption}</figcaption></figure>\n",
        chart.name,
        svg.trim_end()
    )
}
