"""Open questions about the method: one module for each, with `run(context) -> StudyResult`.

`context` trains the bundles that studies share and measures them; `result` writes what a study found. The command is
`training.study`. All studies measure on the valid period, on users that neither taught nor chose the retriever; none
of them changes what is trained or served. May import
all other rooms of training, and the program `training.pipeline`, which trains a bundle.
"""
