#![no_main]

banger_fuzz::target!(tap_name);
