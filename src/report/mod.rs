//! Charts of what was recorded: each can be drawn again from the records alone.

pub mod canvas;
pub mod curves;
pub mod palette;
