"""The decoders, one file each; importing this package registers them all."""

from tracefactory.decoders import foreal as foreal
from tracefactory.decoders import reverse_speculative as reverse_speculative
from tracefactory.decoders import speculative_thinking as speculative_thinking
from tracefactory.decoders import student_prefix as student_prefix
from tracefactory.decoders import teacher_prefix as teacher_prefix
