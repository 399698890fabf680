"""Studies over many range tests: how far can a suggestion be trusted on this task?

A kind of study is a function from a :class:`~pipeline.studies.study.Study` to its
:class:`~pipeline.studies.study.Findings`, named in :data:`~pipeline.studies.options.KINDS`.
"""
