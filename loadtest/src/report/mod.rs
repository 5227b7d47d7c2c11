//! Results as one HTML file that needs nothing from anywhere else: parts → page.
//!
//! What is shown is described in neutral parts: facts, tables, plots of points, bars. Who measures makes them, and
//! whatever makes them gets the same page. Plots are inline SVG drawn here; there is no script, and values show when a
//! point is pointed at. Colours follow the reader's setting for light or dark. All text is escaped, wherever it comes
//! from.

mod axis;
mod page;
mod plot;
mod text;

pub use self::axis::Scale;

/// A whole page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub title: String,
    /// What was measured, in one line.
    pub subtitle: String,
    pub sections: Vec<Section>,
}

/// Parts under a heading.
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub heading: String,
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug)]
pub enum Part {
    Text(String),
    /// Names and values.
    Facts(Vec<(String, String)>),
    Table(Table),
    Plot(Plot),
    Bars(Bars),
}

/// Rows of cells. The first column is left-aligned and names the row.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub caption: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Series over common axes.
#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// An axis; its range is that of the points.
#[derive(Clone, Debug)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

impl Axis {
    pub fn linear(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            scale: Scale::Linear,
        }
    }

    pub fn log(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            scale: Scale::Log,
        }
    }
}

/// Points in the order of x. Those that are not finite are left out.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// A dashed line without dots: a bound or an ideal beside what was measured.
    pub is_reference: bool,
}

impl Series {
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            is_reference: false,
        }
    }

    #[must_use]
    pub fn reference(self) -> Self {
        Self {
            is_reference: true,
            ..self
        }
    }
}

/// One horizontal bar a name, from 0.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    pub title: String,
    pub rows: Vec<Bar>,
}

#[derive(Clone, Debug, Default)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    /// The value as it is to be read, with its unit.
    pub shown: String,
}

impl Page {
    /// The page as HTML.
    pub fn to_html(&self) -> String {
        page::html(self)
    }
}

#[cfg(test)]
mod tests;
