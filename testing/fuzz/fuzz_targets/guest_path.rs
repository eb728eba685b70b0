#![no_main]

banger_fuzz::target!(guest_path);
