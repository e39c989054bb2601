"""What the training step of a stage needs on hardware that is not there.

    hardware = plans.find_hardware("v5e:4x4")
    kind = plans.group_stages(config)[0]
    plan = plans.plan_kind(kind, hardware)
    print(report.describe(plan))

`stage.shapes` gives the step's arguments as shapes, XLA compiles it for the topology,
`hlo` reads the compiled program, `cost` counts its products, bytes and collectives,
`flops` counts those of the mathematics, and `roofline` bounds the time of a step.
"""
