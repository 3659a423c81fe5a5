//! Plots as SVG: what a packet costs over the number of pods or rules, and what an ADD takes.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::{AccessFlags, access};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    drawing::IntoDrawingArea as _,
    element::{Circle, PathElement, Rectangle, Text},
    prelude::{IntoLogRange as _, SVGBackend},
    series::LineSeries,
    style::{BLACK, Color as _, IntoFont as _, Palette as _, Palette99, WHITE},
};

use crate::figures::{Figure, Figures};

/// Of the whole plot, in pixels.
const SIZE: (u32, u32) = (900, 560);
const FONT: &str = "sans-serif";

/// What the cost of a packet is drawn of: where the figures are, and the title.
const COSTS: [(&str, &str, &str); 2] = [
    ("live/egress/allowed/", "egress-allowed.svg", "An allowed packet from a pod: CPU of its sendto"),
    ("live/egress/denied/", "egress-denied.svg", "A denied packet from a pod: CPU of its sendto"),
];

/// Bars of the plot of ADDs: figure, and what it is called.
const ADDS: [(&str, &str); 6] = [
    ("cni/exec", "start nothing"),
    ("cni/raw/add", "netlink alone"),
    ("cni/netpath/plain/add", "netpath as macvlan"),
    ("cni/netpath/add", "netpath, NAD of a directory"),
    ("cni/ip-batch/add", "ip -batch"),
    ("cni/standard/add", "macvlan + host-local"),
];

/// Makes the directory, which is to be found out before anything is measured for it.
pub(crate) fn prepare(directory: &Path) -> Result<()> {
    let said = || format!("--plots {}: cannot be written; name another directory", directory.display());
    fs::create_dir_all(directory).with_context(said)?;
    access(directory, AccessFlags::W_OK).with_context(said)
}

/// Draws what there are figures for.
pub(crate) fn draw(directory: &Path, figures: &Figures) -> Result<()> {
    for (prefix, file, title) in COSTS {
        let lines = by_size(figures, prefix);
        if !lines.is_empty() {
            write(&directory.join(file), &cost(&lines, title)?)?;
        }
    }
    let bars: Vec<(&str, f64)> =
        ADDS.into_iter().filter_map(|(name, text)| Some((text, figures.samples(name)?.median()))).collect();
    if bars.len() > 1 {
        write(&directory.join("add.svg"), &add(&bars)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Size and value of each peer's figures below `prefix`: `PEER/SIZE`, or `PEER` alone for what has no size.
fn by_size<'a>(figures: &'a Figures, prefix: &str) -> BTreeMap<&'a str, Vec<(f64, f64)>> {
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (name, figure) in figures.iter() {
        let (Some(rest), Figure::Taken { samples, .. }) = (name.strip_prefix(prefix), figure) else {
            continue;
        };
        let (peer, size) = rest.split_once('/').unwrap_or((rest, "1"));
        if let Ok(size) = size.parse() {
            lines.entry(peer).or_default().push((size, samples.median()));
        }
    }
    lines.values_mut().for_each(|line| line.sort_by(|a, b| a.0.total_cmp(&b.0)));
    lines
}

/// A line for each peer, both axes logarithmic.
fn cost(lines: &BTreeMap<&str, Vec<(f64, f64)>>, title: &str) -> Result<String> {
    let points = || lines.values().flatten();
    let largest = points().map(|point| point.0).fold(10.0, f64::max);
    let (low, high) =
        points().fold((f64::MAX, 1.0), |(low, high), point| (point.1.min(low), point.1.max(high)));
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..largest).log_scale(), (low * 0.8..high * 1.25).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("pods or rules")
            .y_desc("ns of CPU a packet")
            .label_style((FONT, 13))
            .draw()
            .map_err(failed)?;
        for (number, (peer, line)) in lines.iter().enumerate() {
            let color = Palette99::pick(number).stroke_width(2);
            // What has no size is the same at each.
            let ends = match line.as_slice() {
                [only] => vec![*only, (largest, only.1)],
                all => all.to_vec(),
            };
            chart
                .draw_series(LineSeries::new(ends, color))
                .map_err(failed)?
                .label(*peer)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
            let dots = line.iter().map(|point| Circle::new(*point, 3, Palette99::pick(number).filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 13))
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// A bar for each way to make an attachment.
fn add(bars: &[(&str, f64)]) -> Result<String> {
    let longest = bars.iter().map(|bar| bar.1).fold(1.0, f64::max) / 1e3;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let rows = i32::try_from(bars.len())?;
        let mut chart = ChartBuilder::on(&area)
            .caption("One macvlan with an address", (FONT, 20))
            .margin(12)
            .x_label_area_size(40)
            .build_cartesian_2d(0.0..longest * 1.1, 0..rows * 2)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("ms, median")
            .label_style((FONT, 13))
            .draw()
            .map_err(failed)?;
        // From the top, each on two lines: its name, then its bar.
        for (place, (name, value)) in (0..rows).rev().zip(bars) {
            let (low, value) = (place * 2, value / 1e3);
            let color = Palette99::pick(usize::try_from(place)?).filled();
            let bar = Rectangle::new([(0.0, low), (value, low + 1)], color);
            chart.draw_series([bar]).map_err(failed)?;
            let label = format!("{name}: {value:.2} ms");
            let label = Text::new(label, (longest * 0.005, low + 2), (FONT, 15).into_font());
            chart.draw_series([label]).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Unit;

    #[test]
    fn what_there_are_figures_for_is_drawn() {
        let mut figures = Figures::default();
        for (name, value) in [
            ("live/egress/allowed/none", 2800.0),
            ("live/egress/allowed/netpath/1", 2850.0),
            ("live/egress/allowed/netpath/1000", 2860.0),
            ("live/egress/allowed/nft-list/1000", 80_000.0),
            ("cni/exec", 850.0),
            ("cni/standard/add", 7000.0),
        ] {
            figures.put(name, Unit::Nanoseconds, [value].into_iter().collect());
        }
        figures.miss("live/egress/allowed/u32/1", "not in this kernel");
        let directory = std::env::temp_dir().join(format!("netpath-plot-{}", std::process::id()));
        prepare(&directory).and_then(|()| draw(&directory, &figures)).expect("drawn");
        let read = |name: &str| fs::read_to_string(directory.join(name));
        let (costs, adds) = (read("egress-allowed.svg").expect("drawn"), read("add.svg").expect("drawn"));
        let denied = read("egress-denied.svg");
        fs::remove_dir_all(&directory).expect("removed");
        for peer in ["none", "netpath", "nft-list"] {
            assert!(costs.contains(&format!("\n{peer}\n")), "{peer}: {costs}");
        }
        assert!(!costs.contains("u32") && denied.is_err());
        assert!(
            adds.contains("start nothing: 0.85 ms") && adds.contains("macvlan + host-local: 7.00 ms"),
            "{adds}"
        );
    }
}
