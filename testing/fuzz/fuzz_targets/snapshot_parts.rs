#![no_main]

banger_fuzz::target!(snapshot_parts);
