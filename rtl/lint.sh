verilator --lint-only --unroll-count 24 --unroll-stmts 100000 -Wall -Wno-UNUSEDPARAM -Wno-UNUSEDSIGNAL -Wno-DECLFILENAME -Wno-WIDTH $(cat sources.txt) --top core 2>&1 | grep -A3 "^%" | head -${1:-60}
