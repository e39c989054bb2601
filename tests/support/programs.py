"""What a traced program consists of."""


def equations(jaxpr):
    """Yields the equations of a jaxpr and of all jaxprs inside it, in order."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from equations(inner)


def products(jaxpr):
    """Yields its matrix products."""
    return (e for e in equations(jaxpr) if e.primitive.name == "dot_general")
