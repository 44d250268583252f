//! An Intel VT-d unit.
