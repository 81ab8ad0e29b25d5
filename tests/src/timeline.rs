//! Tables of what happened, printed for people.

use std::fmt;

use bytesize::ByteSize;

use crate::measure::Figures;

/// A table: a heading per column, a label per row. Columns are as wide as what is in them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for (column, cell) in self.rows.iter().flat_map(|row| row.iter().enumerate()) {
            widths[column] = widths[column].max(cell.chars().count());
        }
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line: Vec<String> = cells.collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// What a row shows, and how to get it.
type Quantity<T> = (&'static str, fn(&Figures) -> T);

/// Cold starts side by side, the last column relating the second to the first where there are two.
#[must_use]
pub fn compare(starts: &[(&str, Figures)]) -> Table {
    let mut headings = vec![""];
    headings.extend(starts.iter().map(|(name, _)| *name));
    if starts.len() == 2 {
        headings.push("ratio");
    }
    let mut table = Table::new(&headings);
    let seconds: [Quantity<f64>; 5] = [
        ("pull answered", |figures| figures.pulled_s),
        ("container running", |figures| figures.running_s),
        ("first weight byte", |figures| figures.first_byte_s),
        ("every byte hashed", |figures| figures.complete_s),
        ("processor time", |figures| figures.cpu_s),
    ];
    for (label, get) in seconds {
        add(&mut table, label, starts, get, |value| format!("{value:.2} s"));
    }
    let sizes: [Quantity<u64>; 5] = [
        ("model", |figures| figures.model_bytes),
        ("served by the registry", |figures| figures.served_bytes),
        ("written by the daemons", |figures| figures.written_bytes),
        ("written to the device", |figures| figures.device_bytes),
        ("peak memory", |figures| figures.peak_rss_bytes),
    ];
    for (label, get) in sizes {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "to look at"
        )]
        add(
            &mut table,
            label,
            starts,
            |figures| get(figures) as f64,
            |value| ByteSize(value as u64).to_string(),
        );
    }
    table
}

fn add(
    table: &mut Table,
    label: &str,
    starts: &[(&str, Figures)],
    get: impl Fn(&Figures) -> f64,
    show: impl Fn(f64) -> String,
) {
    let values: Vec<f64> = starts.iter().map(|(_, figures)| get(figures)).collect();
    let mut cells = vec![label.to_owned()];
    cells.extend(values.iter().map(|value| show(*value)));
    if let [first, second] = values[..]
        && first > 0.0
    {
        cells.push(format!("{:.3}", second / first));
    }
    table.row(cells);
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["", "a", "long"]);
        table.row(["first", "1.00 s", "2"].map(String::from));
        assert_eq!(table.to_string(), "            a  long\nfirst  1.00 s     2\n");
    }
}
