"""What serves every package: names and how they are escaped, the machine, the cache folder, deadlines, tables with declared columns, safe CSV."""
