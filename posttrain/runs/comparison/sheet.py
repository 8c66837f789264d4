"""The style sheet of a comparison's page: light, dark and paper, wide and narrow."""

from __future__ import annotations

from posttrain.runs.comparison.ink import variables

STYLE = f"""
:root {{ color-scheme: light dark; --ink: #111213; --soft: #767778; --back: #ffffff; --band: #e4e5e6; --line: #d0d2d4; --tint: #eef4f9;
  --warn: #fdf1e4; {variables(False)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8e9ea; --soft: #9a9c9e; --back: #16181a; --band: #33363a; --line: #3a3d41;
  --tint: #1d2933; --warn: #33271a; {variables(True)} }} }}
@media print {{ :root {{ color-scheme: light; --ink: #111213; --soft: #767778; --back: #ffffff; --band: #e4e5e6; {variables(False)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.45rem; line-height: 1.25; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
.verdict {{ border-left: 5px solid var(--arm-0); padding: .5rem 1rem; background: var(--tint); font-weight: 600; }}
.warning {{ border-left: 5px solid var(--arm-1); padding: .5rem 1rem; background: var(--warn); }}
table {{ border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ font-weight: 600; }} th:first-child, td:first-child {{ text-align: left; }}
thead th {{ border-bottom: 2px solid var(--ink); vertical-align: bottom; }}
td:first-child {{ min-width: 9rem; max-width: 20rem; overflow-wrap: anywhere; }}
.plain td {{ overflow-wrap: anywhere; min-width: 5rem; }}
.scroll {{ overflow-x: auto; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }}
figure {{ margin: .5rem 0; min-width: 0; }} figure svg {{ width: 100%; max-width: 34rem; height: auto; display: block; }}
figcaption {{ color: var(--soft); font-size: .82rem; line-height: 1.35; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .5rem 0; list-style: none; font-size: .88rem; }}
.legend li {{ display: flex; align-items: baseline; gap: .5rem; min-width: 0; overflow-wrap: anywhere; }}
.legend svg, td svg {{ width: 2.6rem; height: .9rem; flex: none; vertical-align: -.1rem; margin-right: .4rem; }}
.notes, footer {{ font-size: .88rem; }} summary {{ cursor: pointer; }} details {{ margin: .6rem 0; }}
@media print {{ body {{ margin: 0; max-width: none; }} }}
"""
