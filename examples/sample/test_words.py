import unittest

from words import count


class Count(unittest.TestCase):
    def test_counts(self):
        self.assertEqual(count("a rose is a rose"), {"a": 2, "rose": 2, "is": 1})

    def test_nothing(self):
        self.assertEqual(count(""), {})


if __name__ == "__main__":
    unittest.main()
