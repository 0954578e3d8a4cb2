"""Mutants of the library: registries, settings, experiments and what comes of them."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "registry.py",
        "test_registry.py",
        ("self._given[name] = (thing, options)", "self._given[name] = (thing, {})"),
        ('not name or ":" in name', "not name"),
        ("del self._entries[name], self._given[name]", "del self._entries[name]"),
        (
            "if name not in self._entries:\n            self._import_group()",
            "if True:\n            self._import_group()",
        ),
        ("self._import_modules()\n        self._import_group()", "self._import_modules()"),
        ("if given is thing or self._entries[name] is thing", "if given is thing"),
        ("if given is thing or self._entries[name] is thing", "if self._entries[name] is thing"),
        ("        self._entries |= before\n", ""),
        ("name in self or self._file_in(name) is not None", "name in self"),
        ('if name.startswith("_") or name not in self', "if name not in self._entries"),
        ("{close[0]!r}? ", "{known[-1]!r}? "),
        ('if hasattr(module, "__path__"):', "if False:"),
    ),
    *edits(
        "checked_settings.py",
        "config/test_config.py",
        ("Annotated[int, Ge(1), Le(MOST)]", "Annotated[int, Ge(0), Le(MOST)]"),
        ("Annotated[int, Ge(1), Le(MOST)]", "Annotated[int, Ge(1)]"),
        ("Annotated[float, Ge(0), Le(1)]", "Annotated[float, Ge(0)]"),
        ("Annotated[float, Le(1e30)]", "float"),
        ("strict=True, allow", "strict=False, allow"),
        ("allow_inf_nan=False", "allow_inf_nan=True"),
        ("if len(set(named)) != len(named):", "if False:"),
        ('f"{section}.{field.name}" if section else', "field.name if section else"),
        ('message += _REMEDIES.get(first["type"], "")', "pass"),
    ),
    *edits(
        "experiment.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("rounds=done.number + 1)", "rounds=done.number)"),
        ("rounds=done.number + 1)", "rounds=0)"),
        ("if self._start is None or self.run is not None:", "if True:"),
        ("rounds - 1 if rounds else None", "rounds if rounds else None"),
        ("rounds - 1 if rounds else None", "rounds - 1"),
        ("            before.close()", "            pass"),
        ("self._rounds = weakref.ref(rounds)", "self._rounds = lambda: rounds"),
        ("log(done.number, of_round(done.line))", "pass"),
        ("log(self.total_rounds - 1, of", "log(self.total_rounds, of"),
        (
            "self.config, self.prepared, self.run, self._step)\n            return",
            "self.config, self.prepared, self.run, '0')\n            return",
        ),
        ("settled(config or Config(), base, data)", "(config or Config())"),
    ),
    *edits(
        "outcome.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("return self.adapters.of(place)", "return self.adapters.of(0)"),
        (
            "uploads = sends_own_parts(make_method(self.config, self.prepared))",
            "uploads = False",
            "federated/test_personal_runs.py::"
            "test_every_mode_answers_and_every_instance_is_weighed",
        ),
        ("eval=dataclasses.replace(config.eval, **changes)", "eval=config.eval"),
        ('{"modes": modes, "metrics": metrics}', '{"modes": modes}'),
        (
            "round_number=number,\n                folder=self.run and",
            "round_number=0,\n                folder=self.run and",
        ),
        ("own = dataclasses.replace(own, rule=name, parameters=kept)", "pass"),
        ("kept = {} if weighting is None else own.parameters", "kept = own.parameters"),
        ("name = own.rule if rule is None else named(rule)", "name = own.rule"),
        ("own = weighting or self.config.weighting", "own = self.config.weighting"),
    ),
    *edits(
        "run/loop.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("left = range(first, total_rounds(config))", "left = range(0, total_rounds(config))"),
        ("yield Round(number, state, line)", "yield Round(number + 1, state, line)"),
        ("yield Round(number, state, line)", "yield Round(number, start.state, line)"),
        (
            "record(saver, known, run, number, state, line)",
            "record(saver, known, run, number, start.state, line)",
        ),
    ),
    *edits(
        "run/beginning.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("found.rounds, config.fed.keep_checkpoints", "0, config.fed.keep_checkpoints"),
        ("own = dataclasses.replace(fresh, saved=clients)", "own = fresh"),
        (
            "known = expected if init is None",
            "known = {} if init is None",
            "e2e/test_changed_data.py::"
            "test_adapters_at_the_start_are_known_even_without_their_folder",
        ),
    ),
    *edits(
        "run/session.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("if self._log is not None:", "if False:"),
        ("finally:\n                self._log = None", "finally:\n                pass"),
    ),
    *edits(
        "run/recording.py",
        "test_experiment.py test_outcome.py test_stopped_experiment.py",
        ("        state.server,\n", "        {},\n"),
        ("clients=state.clients.saved", "clients={}"),
    ),
    *edits(
        "cli/weigh.py",
        "laboratory/test_options.py",
        ('"supports": (int, 1, 10_000)', '"supports": (float, 1, 10_000)'),
        ('"supports": (int, 1, 10_000)', '"supports": (int, 0, 10_000)'),
        ('"exact": known.exact', '"exact": 0'),
        (
            "dict.fromkeys(name.strip() for name in known.rules.split",
            "(name.strip() for name in known.rules.split",
        ),
        (
            "dict.fromkeys(name.strip() for name in known.rules.split",
            "dict.fromkeys(name for name in known.rules.split",
        ),
        ("            values = ()\n", "            values = (1,)\n"),
    ),
]
