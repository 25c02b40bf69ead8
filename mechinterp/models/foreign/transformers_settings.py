"""Settings of transformers' configs that do not change what a decoder in evaluation mode computes."""

GENERAL = (
    # what it is called, and what it returns
    *("architectures", "transformers_version", "return_dict", "output_hidden_states", "output_attentions"),
    *("use_cache", "dtype", "torch_dtype", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "is_decoder"),
    # tokens with a meaning, and generation
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "suppress_tokens"),
    *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "begin_suppress_tokens"),
    # tasks, training and other frameworks
    *("task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id", "num_labels"),
    *("tokenizer_class", "tf_legacy_loss", "initializer_range", "cross_attention_hidden_size"),
    *("tie_encoder_decoder", "gradient_checkpointing"),
)
