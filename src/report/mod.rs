//! Charts of what was recorded: each can be drawn again from the records alone.

pub mod canvas;
pub mod curves;
pub mod layer_table;
pub mod palette;
pub mod table;
pub mod training_table;
