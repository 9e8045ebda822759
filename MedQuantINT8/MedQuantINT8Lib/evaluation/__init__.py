"""What INT8 gains and loses: agreement, labels, statistics, and the reports that say so."""
