"""Networks cut after one of their blocks, trained as classifiers: fine-tuned, from scratch, or frozen."""
