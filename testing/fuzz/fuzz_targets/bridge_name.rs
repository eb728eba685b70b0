#![no_main]

banger_fuzz::target!(bridge_name);
