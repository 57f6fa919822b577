"""The kinds of model, one file each; importing this package files them in `MODELS`."""

from tracefactory.models import fake as fake
from tracefactory.models import local as local
from tracefactory.models import openai as openai
from tracefactory.models import transformers as transformers
from tracefactory.models import vllm as vllm
