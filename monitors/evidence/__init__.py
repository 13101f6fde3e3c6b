"""Evidence: numbers that stay small while nothing has changed, however often one looks.

An *e-process* starts at 1 and is expected not to exceed 1 while its null hypothesis holds, whenever one stops looking.
`reference` and `multinomial` make one from bin counts and a finite baseline, `losses` from bounded losses,
`conformal` from the order of scores. `detector` turns them into detectors of change with a guaranteed mean time
between false alarms, `selection` names features, `calibration` widens the null where rows depend on one another.
"""
