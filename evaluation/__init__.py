"""What a trained model says, how good and how diverse it is. A map of the folder:

generate.py        the command: prompts -> responses.jsonl, and the anchors file that the trainer reads
  responses.py     a file of responses; sampling.py the paper's settings; prompts.py prompts and chat templates
  plan.py          a run, checked before a model is loaded; checkpoint.py what is known of the model by then
  generating.py    Hugging Face models, random numbers for each response; vllm_generating.py the same through vLLM
winrate.py         the command: files of responses against a baseline, judged by a model behind the OpenAI protocol
  pairing.py       two files -> pairs and orders; templates.py what a judge is asked; estimate.py what it will take
  judging.py       many at once, both orders, resume; judge.py the client; cache.py its answers on disk
  verdicts.py      verdicts -> outcomes; statistics.py, intervals.py, length_control.py what they say about a model
  report.py        tables and figures; alpaca.py our files as alpaca_eval's JSON
diversity.py       the command: how different a model's responses to one prompt are
  diversity_measures.py self-BLEU and distinct-n; diversity_entropy.py by our kernel; diversity_report.py the table
toy_judge.py       a judge that knows the truth, for the language of toy/
"""
