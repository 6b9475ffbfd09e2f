"""The Pulumi program, for `pulumi up -s STACK`. `elsapg up` runs the same one."""

from pathlib import Path

import pulumi

from elsapg.program import program
from elsapg.program_entry import settings_from_pulumi_config

program(pulumi.get_stack(), settings_from_pulumi_config(), Path(__file__).resolve().parent)
