"""Mutants of the laboratory."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "laboratory/findings.py",
        "laboratory/test_findings.py",
        (
            "weight_CJ[:, split.rows].astype",
            "weight_CJ[:, : split.rows.stop - split.rows.start].astype",
        ),
        ("scores[name] - others[name]", "others[name] - scores[name]"),
        (
            "score_CIWX[:, :, :-2:2] + score_CIWX[:, :, 2::2]) / 2",
            "score_CIWX[:, :, :-2:2] + score_CIWX[:, :, 2::2]) / 4",
        ),
        (".max(axis=2)", ".mean(axis=2)"),
        ('zip(("P", "TTP"), off_Z.tolist()', 'zip(("TTP", "P"), off_Z.tolist()'),
        (
            '{"P": s.p.to_json(), "TTP": s.ttp.to_json()}',
            '{"P": s.p.to_json(), "TTP": s.p.to_json()}',
        ),
        (
            '{"P": s.p.to_json(), "TTP": s.ttp.to_json()}',
            '{"P": s.ttp.to_json(), "TTP": s.p.to_json()}',
        ),
        (
            '(("own", own_CK), ("foreign", ~own_CK))',
            '(("foreign", own_CK), ("own", ~own_CK))',
        ),
        ("share_CK = cells_CK / cells_CK.sum()", "share_CK = cells_CK / cells_CK.size"),
        ('"validation": _summaries(finding.validation)', '"validation": _summaries(finding.test)'),
        ('"test": _summaries(finding.test)', '"test": _summaries(finding.validation)'),
        (
            '"minus_paper": _summaries(finding.minus_paper)',
            '"minus_paper": _summaries(finding.test)',
        ),
        (
            "None if finding.exact is None else _summaries(finding.exact)",
            "None if finding.exact is None else _summaries(finding.test)",
        ),
        (
            "weight_CI = candidate.weight_CJ[:, test.rows]",
            "weight_CI = candidate.weight_CJ[:, : own_CI.shape[1]]",
        ),
        (
            'for side, cells in (("own", own_CI), ("foreign", ~own_CI))',
            'for side, cells in (("foreign", own_CI), ("own", ~own_CI))',
        ),
        ("QUANTILES = (0.05, 0.25", "QUANTILES = (0.0, 0.25"),
        ("for z in headings]", "for z in headings[::-1]]"),
    ),
    *edits(
        "laboratory/choosing.py",
        "laboratory/test_choosing.py",
        ("1 / (able * len(held_H))", "1 / (len(own) * len(held_H))"),
        ("1 / (len(own) * count)", "1 / count"),
        ("tasks.sizes()[:, None]", "tasks.sizes().mean()"),
        ('[found["P"], found["TTP"]]', '[found["TTP"], found["P"]]'),
    ),
    *edits(
        "laboratory/standing.py",
        "laboratory/test_findings.py",
        ("if not finding.candidate.is_bound and", "if"),
        (" and finding.candidate.label != PAPER", ""),
        ("len(MEASURES) * len(rivals(findings))", "len(rivals(findings))"),
    ),
    *edits(
        "cli/findings_table.py",
        "laboratory/test_findings.py",
        (
            "for value in (found[name].p, found[name].ttp)",
            "for value in (found[name].ttp, found[name].p)",
        ),
        (".cell(finding.minus_paper[name].ttp,", ".cell(finding.minus_paper[name].p,"),
        ("*_values(finding.test), against,", "*_values(finding.validation), against,"),
        ("*_values(finding.exact), answers,", "*_values(finding.test), answers,"),
    ),
    *edits(
        "laboratory/grid.py",
        "laboratory/test_grid.py laboratory/test_findings.py",
        (
            "collected.nll_CJW[:, rows], 100.0 * collected.greedy_CJW[:, rows]",
            "collected.nll_CJW[:, rows], 1.0 * collected.greedy_CJW[:, rows]",
        ),
        ("(at(low_B + 1) - at(low_B))", "(at(low_B) - at(low_B + 1))"),
        ("jnp.floor(weight_B * steps)", "jnp.round(weight_B * steps)"),
        ('side == "local") for scale', 'side == "global") for scale'),
        ("np.stack(by_support, axis=1)", "np.stack(by_support, axis=0)"),
    ),
    *edits(
        "laboratory/candidates.py",
        "laboratory/test_grid.py laboratory/test_findings.py",
        (
            "mean_N if METRICS[name].lower_is_better else -mean_N",
            "-mean_N if METRICS[name].lower_is_better else mean_N",
        ),
        ("mean_N if METRICS[name].lower_is_better else -mean_N", "mean_N"),
        (".mean(axis=-1)\n        cost_N", "[..., 0]\n        cost_N"),
        ("return np.mean(found, axis=0)", "return found[0]"),
        ("own[place_N.argmin()]", "own[0]"),
        ("cost_CJW.argmin(axis=-1)", "cost_CJW.argmax(axis=-1)"),
        ("mean_CW.argmin(axis=-1)", "mean_CW.argmax(axis=-1)"),
        ("return -collected.greedy_CJW", "return collected.greedy_CJW"),
        ('rule="constant", scale=0.0)', 'rule="constant", scale=1.0)', "e2e/test_weigh.py"),
    ),
    *edits(
        "laboratory/search.py",
        "e2e/test_weigh.py",
        (
            'judged(candidate, splits["validation"]),',
            'judged(candidate, splits["test"]),',
        ),
        (
            'judged(candidate, splits["test"]),',
            'judged(candidate, splits["validation"]),',
        ),
        (
            'judged(candidate, splits["test"], of_paper_CJ)',
            'judged(candidate, splits["validation"], of_paper_CJ)',
        ),
        (
            "of_paper_CJ = candidates.weigh(collected, paper)",
            "of_paper_CJ = 1.0 - candidates.weigh(collected, paper)",
        ),
        ("exact.get(label)\n        or interpolated", "interpolated"),
    ),
    *edits(
        "laboratory/off_curve.py",
        "laboratory/test_off_curve.py",
        ("np.linspace(0, len(found) - 1, min(FEW", "np.linspace(0, len(found) // 2, min(FEW"),
        ("[dataclasses.replace(found[0], parameters=Values())]", "found"),
        ("place_B[: len(own)] = own", "place_B[: len(own)] = own[0]"),
        ("weights.where(fold_CB == fold, found)", "weights.where(fold_CB != fold, found)"),
        ("scores_CI - of_paper.scores_CI[name]", "of_paper.scores_CI[name] - scores_CI"),
        ("2 * count * choosing", "count * choosing"),
    ),
    *edits(
        "laboratory/material.py",
        "e2e/test_weigh.py",
        ("split(setting.instances, validation.rows.stop)", "split(setting.instances, first)"),
        ("[*agreed_tokens, *held_tokens", "[*held_tokens, *agreed_tokens"),
        ("tuple(held[i] for i in found.kept)", "held[:1]"),
    ),
    *edits(
        "laboratory/agreement.py",
        "laboratory/test_findings.py",
        (
            "getattr(exact, z).value - getattr(test, z).value",
            "getattr(exact, z).value",
        ),
    ),
    *edits(
        "laboratory/collect.py",
        "laboratory/test_collect.py",
        ("Request(c, example, 1.0 - weight, weight)", "Request(c, example, weight, 1.0 - weight)"),
        ('at_weight[w]["nll"]) for w in WEIGHTS]', 'at_weight[w]["nll"]) for w in WEIGHTS[::-1]]'),
        ("support[at][draw_M]", "support[at][: len(draw_M)]"),
        ("POOLINGS.index(settings.pooling)", "0"),
        ("own.layers.index(layer)", "0"),
        ('"local": 1.0}', '"local": 0.0}'),
    ),
]
