//! Rows: a table on a terminal, tab-separated and without a header elsewhere.

use super::manner::Paint;
use super::problem::Problem;
use super::text;
use super::{manner, output};

/// Prints rows of as many cells as the header has; where little is to be said, the names in their first cells alone.
pub(crate) fn print(header: &[&str], rows: &[Vec<String>]) -> Result<(), Problem> {
    if manner::is_quiet() {
        let mut names: Vec<&String> = rows.iter().filter_map(|row| row.first()).collect();
        names.dedup();
        return output::data(&names.iter().map(|name| format!("{name}\n")).collect::<String>());
    }
    match output::on_terminal() {
        true => output::data(&drawn(header, rows, output::width(), state)),
        false => output::data(&lines(rows)),
    }
}

/// Tab-separated lines.
fn lines(rows: &[Vec<String>]) -> String {
    rows.iter().map(|row| format!("{}\n", row.join("\t"))).collect()
}

/// Columns as wide as their widest cell; nothing for no rows. Where they don't fit, those to the right are left out, never
/// the first, which has the names.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], room: usize) -> String {
    drawn(header, rows, room, str::to_owned)
}

/// The same; `paint` gives states their colour.
fn drawn(header: &[&str], rows: &[Vec<String>], room: usize, paint: impl Fn(&str) -> String) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let all = || std::iter::once(&header).chain(rows);
    let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut end = 0;
    let fitting = widths.iter().take_while(|width| {
        end += *width + 2;
        end - 2 <= room
    });
    let columns = fitting.count().max(1);
    let line = |row: &Vec<String>| {
        let shown = |((cell, &width), head): ((&String, &usize), &String)| {
            let room = " ".repeat(width + 2 - cell.chars().count().min(width));
            if head == "STATE" { format!("{}{room}", paint(cell)) } else { format!("{cell}{room}") }
        };
        let cells: String = row.iter().zip(&widths).zip(&header).take(columns).map(shown).collect();
        format!("{}\n", cells.trim_end())
    };
    all().map(line).collect()
}

/// A state in its colour, where standard output shows colours.
pub(crate) fn state(state: &str) -> String {
    match state {
        "running" | "up" | "runs" => manner::data(Paint::Green, state),
        "planned" | "starting" | "stopping" | "unfinished" => manner::data(Paint::Yellow, state),
        "failed" | "lost" => manner::data(Paint::Red, state),
        "stopped" | "down" => manner::data(Paint::Dim, state),
        _ => state.to_owned(),
    }
}

/// A cell's text: escaped, and `-` where there is none, so that columns can be told apart.
pub(crate) fn cell(content: &str) -> String {
    if content.is_empty() { "-".into() } else { text::line(content) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_do_not_fit_are_left_out_but_for_the_first() {
        let rows = [vec!["calm-otter".to_owned(), "stopped".to_owned(), "x".to_owned()]];
        let heads = |room| {
            let table = table(&["NAME", "STATE", "IMAGE"], &rows, room);
            assert!(table.lines().all(|line| line.chars().count() <= room.max(10)), "{room}: {table}");
            assert!(table.contains("calm-otter"), "{room}");
            table.lines().next().unwrap().split_whitespace().count()
        };
        // 10, 7 and 5 wide, two apart.
        assert_eq!([26, 25, 19, 18, 3].map(heads), [3, 2, 2, 1, 1]);
        assert_eq!(table(&["NAME"], &[], 80), "");
    }
}
