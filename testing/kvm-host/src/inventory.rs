//! What a test may leave behind: looked at before and after.
