#![no_main]

banger_fuzz::target!(managed_path);
