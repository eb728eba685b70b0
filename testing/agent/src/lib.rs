//! Nothing but `tests/`: owner/ and guest/ know each other only through wire/, so a test that
//! needs both lives here.
#![forbid(unsafe_code)]
