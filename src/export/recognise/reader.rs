//! The inputs, outputs, graph and configurations that an export is recognised from.

use std::ffi::CString;
use std::path::Path;

use ort::value::{Outlet, TensorElementType};

use crate::error::Error;
use crate::export::companions::Companions;
use crate::export::graph::Graph;

/// An upper bound of the number of heads, and of the elements in all heads.
pub const MAX_SIZE: usize = 1 << 20;

/// An upper bound of context lengths, in tokens. Inputs and caches of a fixed length are allocated at that length.
pub const MAX_CONTEXT: usize = 1 << 24;

/// An input or output that is a tensor.
pub struct Port<'a> {
    pub name: &'a str,
    pub element: TensorElementType,
    /// Its dimensions. A dimension that the export does not fix is -1.
    pub shape: Vec<i64>,
}

impl<'a> Port<'a> {
    /// `None` if it is not a tensor.
    pub fn of(outlet: &'a Outlet) -> Option<Self> {
        let value = outlet.dtype();
        Some(Port { name: outlet.name(), element: value.tensor_type()?, shape: value.tensor_shape()?.to_vec() })
    }

    /// The size of a dimension, if the export fixes it.
    pub fn fixed(&self, axis: usize) -> Option<usize> {
        self.shape.get(axis).and_then(|&size| usize::try_from(size).ok())
    }
}

/// Everything that an export is recognised from.
pub struct Reader<'a> {
    pub file: &'a Path,
    pub graph: &'a Graph,
    pub inputs: &'a [Outlet],
    pub outputs: &'a [Outlet],
    pub companions: Companions,
}

impl Reader<'_> {
    /// Whether the graph has one of these operators.
    pub fn has(&self, operators: &[&str]) -> bool {
        operators.iter().any(|operator| self.graph.all(operator).next().is_some())
    }

    /// Whether activations are quantised with one scale for all positions of a pass.
    pub fn is_dynamic(&self) -> bool {
        self.has(&["DynamicQuantizeLinear", "DynamicQuantizeMatMul"])
    }

    /// The error of an export that is invalid or not a language model.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::Model(self.say(what))
    }

    /// The error of an export that CoS cannot decode with.
    pub fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::Unsupported(self.say(what))
    }

    fn say(&self, what: impl std::fmt::Display) -> String {
        let names = |outlets: &[Outlet]| {
            let mut names: Vec<&str> = outlets.iter().map(Outlet::name).take(6).collect();
            if outlets.len() > names.len() {
                names.push("…");
            }
            names.join(", ")
        };
        let (inputs, outputs) = (names(self.inputs), names(self.outputs));
        format!("{}: {what}; its inputs are {inputs}, its outputs {outputs}", self.file.display())
    }
}

/// A name for the C API.
pub fn c_name(name: &str) -> CString {
    CString::new(name).expect("ONNX Runtime gives names as C strings")
}
