"""Cell nuclei, measured in images of fine needle aspirates: malignant or benign?"""
