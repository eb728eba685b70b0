#![no_main]

banger_fuzz::target!(drive_id);
