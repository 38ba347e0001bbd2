"""What a trained model says, how good and how diverse it is. A map of the folder; the commands:

generate.py     prompts -> responses.jsonl, and the anchors file that the trainer reads
winrate.py      files of responses against a baseline, judged by a model behind the OpenAI protocol
diversity.py    how different a model's responses to one prompt are
toy_judge.py    a judge that knows the truth, for the language of toy/
alpaca.py       our files as alpaca_eval's JSON

responses.py is a file of responses, files.py any file that survives a stop, inputs.py what a command refuses.

generating/     plan.py: a run, checked before a model is loaded. prompts.py: prompts and chat templates; sampling.py:
                the paper's settings; checkpoint.py: what is known of a model. hf_engine.py: Hugging Face models, random
                numbers for each response; vllm_engine.py: the same through vLLM
judging/        pairing.py: two files -> pairs and orders; templates.py: what a judge is asked; estimate.py: what it
                will take. run.py: many at once, both orders, resume; judge.py: the client; cache.py: its answers on
                disk. verdicts.py: its answers as lines, and the outcomes of pairs
reporting/      statistics.py, intervals.py, length_control.py: what outcomes say about a model; report.py: shows it
measuring/      samples.py: files that are compared, and what is the same for all; measures.py: self-BLEU and
                distinct-n; entropy.py: by our kernel; table.py: shows them
"""
