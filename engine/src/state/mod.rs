//! Floor 2: what is remembered. Operators keep state by key in [`table`]s.

pub(crate) mod table;
