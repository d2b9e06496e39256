//! The use cases: take, log, show, revert, doctor. The boundary for every front end.
