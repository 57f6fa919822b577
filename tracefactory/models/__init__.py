"""Models behind one client; importing this package files the kinds of model in `MODELS`."""

from tracefactory.models import fake as fake
from tracefactory.models import local as local
from tracefactory.models import openai_api as openai_api
from tracefactory.models import transformers as transformers
from tracefactory.models import vllm as vllm
