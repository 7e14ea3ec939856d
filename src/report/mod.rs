//! Charts of what was recorded: each can be drawn again from the records alone.

pub mod axis;
pub mod bars;
pub mod canvas;
pub mod charts;
pub mod choices;
pub mod csv;
pub mod curves;
pub mod data;
pub mod folder;
pub mod frame;
pub mod layer_table;
pub mod layout_table;
pub mod mistakes;
pub mod page;
pub mod palette;
pub mod peer_table;
pub mod plot;
pub mod speedup_table;
pub mod table;
pub mod training_table;
pub mod waterfall;
