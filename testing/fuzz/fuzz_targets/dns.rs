#![no_main]

banger_fuzz::target!(dns);
