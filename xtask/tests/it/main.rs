//! The workspace keeps its shape.

mod arrows;
mod toolchain;
