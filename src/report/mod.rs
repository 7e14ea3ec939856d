//! Charts of what was recorded: each can be drawn again from the records alone.

pub mod bars;
pub mod canvas;
pub mod charts;
pub mod choices;
pub mod curves;
pub mod folder;
pub mod layer_table;
pub mod layout_table;
pub mod palette;
pub mod peer_table;
pub mod table;
pub mod training_table;
