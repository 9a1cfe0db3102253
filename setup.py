"""What pyproject.toml cannot say: which packages are installed, and from where.

A wheel holds `condlora` alone, with the checkout's configs/ as condlora/configs. An editable install serves the
checkout, where analysis/ and benchmarks/ are imported too and the configs stay where they are.
"""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel


class Checkout(editable_wheel):
    def run(self):
        self.distribution.packages = find_packages(
            include=["condlora*", "analysis*", "benchmarks*"]
        )
        super().run()


setup(
    packages=[*find_packages(include=["condlora*"]), "condlora.configs"],
    package_dir={"condlora.configs": "configs"},
    package_data={"condlora": ["py.typed"], "condlora.configs": ["**/*.yaml"]},
    cmdclass={"editable_wheel": Checkout},
)
