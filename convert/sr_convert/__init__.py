"""From a trained checkpoint to a GGUF that can be proved right.

`convert` goes the whole way. What it goes through:

    checkpoint     config and safetensors of a folder, as a `source` of rows
    lora           a peft adapter, merged into such a source         adapter    written as a GGUF of its own
    markers        the two markers, put on rows of a source
    tokenizer      the vocabulary, and how text is cut (`pre_tokenizers`)
    describing     all other metadata, as `fields` (`rope`)
    tensors        which there are and how they are packed (`architectures`)
    writing        the file, whole or not at all

`verify` compares the result with the checkpoint, and trusts nothing of the above. `command` is the command
line; `pulled` is what the client calls. PyTorch and transformers are for `verify` alone.
"""
