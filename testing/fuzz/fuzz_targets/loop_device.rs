#![no_main]

banger_fuzz::target!(loop_device);
