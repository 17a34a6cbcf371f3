"""What the tables share: their layout, and the numbers that the paper prints, as far as they are known here."""


def markdown(header, rows):
    """A table; the first column is text, the others are numbers."""
    rule = "|".join("---" if i == 0 else "---:" for i in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


# (table, method, r, targets, task). A task with one of these scores gets a column for the paper.
PAPER_SCORES = {
    ("table1", "hut", 8, "qv", "cola"): "70.5 ± 1.2",
    ("table1", "houlsby", 8, None, "rte"): "91.5",
    ("table1", "houlsby", 8, None, "stsb"): "72.9",
    ("table4", "hut", 8, "qv", "cola"): "71.7",
    ("table5", "hut", 8, "qv", "cola"): "71.7",
}

PAPER_PARAMETERS = {  # on its own models, RoBERTa-large and GPT-2 medium; READ's paper's on T5-base
    "table1": {"full": "355.0M", "houlsby:64": "6.0M", "houlsby:8": "0.8M", "pfeiffer:64": "3.0M", "pfeiffer:16": "0.8M",
               "lora:8": "0.8M", "vera:256": "0.061M", "fourierft:1000": "0.048M", "hut:8": "0.9M"},
    "table3": {"houlsby:112": "11.09M", "lin:6": "0.37M", "lin:224": "11.09M", "lora:4": "0.35M", "vera:1024": "0.098M",
               "top2": "25.19M", "prefix:7": "0.35M", "hut:4": "0.45M"},
    "read": {"full": "247.58M (100 %)", "bitfit": "0.06 %", "lora:32": "0.48 %", "houlsby:64": "0.96 %", "lst": "5.04M",
             "read:256": "1.97M (0.80 %)"},
}  # fmt: skip

# Table 2, GFLOPs: (method, r)
PAPER_GFLOPS = {
    ("hut", 8): 0.20,
    ("lora", 8): 0.86,
    ("houlsby", 64): 1.61,
    ("houlsby", 8): 0.41,
    ("pfeiffer", 64): 2.40,
    ("pfeiffer", 16): 1.80,
}

OVER_R = "Over r at q and v, the paper's CoLA goes from 67.1 to 71.7 and its MRPC from 88.5 to 91.2"
PAPER_NOTES = {
    "table1": "Of the paper's houlsby r8, RTE 91.5 and STS-B 72.9 seem to have changed places.",
    "table4": "The paper prints 0.8M for each row. Which targets stand for its 1, 2, 3 and 4 matrices is our choice.",
    "table5": f"{OVER_R}.",
    "rank": f"{OVER_R}; over seeds, its Table 1 has a standard deviation of 1.2 on CoLA. In exact arithmetic, under AdamW "
    "and without clipping, r is a factor of epsilon and nothing else: tests/test_rank.py.",
    "read": (
        "The READ paper's Table 1, on T5-base, prints an Avg that is not the mean of its seven tasks. As printed, and the "
        "mean: full 84.52, 84.10; adapter (houlsby) 85.04, 84.08; LoRA 84.89, 83.86; BitFit 84.43, 83.56; prompt 82.38, "
        "80.95; LST 84.58, 83.64; READ 84.97, 84.08. By the means READ does not beat full tuning. It saves 84 % of the "
        "energy, or up to 90, in the text and 83.5 by the table; 56 % of the memory in the text and 61.4 by the table (6.90 "
        "of 17.86). Shares there are of 247.58M, which counts the output layer beside the embeddings that it is; here it is "
        "counted once (T5-base: 222.90M, of which READ is 0.88 %). LoRA's 0.48 % is that of 24 matrices; q and v, adapted "
        "here, are 72 (1.59 %). BitFit's 0.06 % is not explained, as T5 has no biases: here the norms' scales are trained "
        "(0.02 %).\n\n"
        "A score is the mean of the task's own (MRPC, QQP: accuracy and F1; STS-B: Pearson and Spearman). Parameters are "
        "the method's, with their share of the backbone. Memory is the most that a run held, scoring included, on the task "
        "where that is most; time and energy are sums over the tasks."
    ),
}
