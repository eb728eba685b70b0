#![no_main]

banger_fuzz::target!(dm_name);
