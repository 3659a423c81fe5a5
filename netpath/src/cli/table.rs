//! Tables for people: aligned, without borders.

use std::fmt::{Display, Formatter, Result as FmtResult};

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    /// For numbers.
    Right,
}

/// Rows below a header. An empty cell is shown as `-`, so that columns can be cut by programs as well.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which has a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "{cells:?}");
        self.rows.push(cells.iter().map(|cell| super::printable(cell)).collect());
    }
}

/// One line a row, two spaces between columns, no space at the end of a line, no newline at the end.
impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(&self.rows).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| shown(cell).chars().count()).max()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        for (number, line) in lines.into_iter().enumerate() {
            let mut text = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                if !text.is_empty() {
                    text.push_str("  ");
                }
                let (cell, width) = (shown(cell), *width);
                text += &match align {
                    Align::Left => format!("{cell:width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
            }
            if number != 0 {
                f.write_str("\n")?;
            }
            f.write_str(text.trim_end())?;
        }
        Ok(())
    }
}

fn shown(cell: &str) -> &str {
    if cell.is_empty() { "-" } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> String {
        let mut table = Table::new(&[("POD", Align::Left), ("TX", Align::Right), ("MODE", Align::Left)]);
        for row in rows {
            table.row(row.iter().map(|cell| (*cell).to_owned()).collect());
        }
        table.to_string()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let expected = "\
POD                TX  MODE
default/net-pod    12  enforce
a                1234  off";
        assert_eq!(table(&[["default/net-pod", "12", "enforce"], ["a", "1234", "off"]]), expected);
    }

    #[test]
    fn names_are_no_commands_to_a_terminal() {
        let shown = table(&[["a\u{1b}[2J", "1\n", "\u{9b}"]]);
        assert_eq!(shown, "POD          TX  MODE\na\\u{1b}[2J  1\\n  \\u{9b}");
    }

    #[test]
    fn a_header_wider_than_its_cells_counts() {
        assert_eq!(table(&[["a", "1", "x"]]), "POD  TX  MODE\na     1  x");
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        assert_eq!(
            table(&[["pöd…", "1", "x"], ["abcd", "2", "y"]]),
            "POD   TX  MODE\npöd…   1  x\nabcd   2  y"
        );
    }

    #[test]
    fn an_empty_cell_is_a_dash_and_lines_end_without_spaces() {
        assert_eq!(table(&[["", "", ""]]), "POD  TX  MODE\n-     -  -");
        assert!(table(&[["a", "1", "x"], ["a", "1", "longer"]]).lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(table(&[]), "POD  TX  MODE");
    }
}
