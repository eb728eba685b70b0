#![no_main]

banger_fuzz::target!(group_name);
