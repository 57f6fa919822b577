"""The published forms of a trace, one file each; importing this package registers them all."""

from tracefactory.views import chat as chat
from tracefactory.views import masked as masked
from tracefactory.views import preference as preference
from tracefactory.views import raw as raw
from tracefactory.views import sft as sft
